"""Commands: run one config, compare strategies, rebuild tables and figures."""

"""Commands: run one config, compare strategies, rebuild tables and figures."""

import jaxcl as jaxcl  # handles Ctrl-C from here on: see `jaxcl._interrupts`

#!/bin/bash
# The name that the DeepSeek-MoE guide has for run_pa.sh.
exec bash "$(dirname "${BASH_SOURCE[0]}")/run_pa.sh" "$@"

"""Generated from protos/fairlead/v1 by `make protos`; not edited by hand."""

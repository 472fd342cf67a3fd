"""From a recipe's YAML to trained stages."""

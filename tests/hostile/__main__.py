"""The hostile pass, with its table."""

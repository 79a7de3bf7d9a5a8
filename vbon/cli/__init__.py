"""The `vbon` command and the parts that commands are made of."""

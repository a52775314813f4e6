"""The layers DLRM and its peers are made of."""

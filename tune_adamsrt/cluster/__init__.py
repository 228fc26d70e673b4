"""The machines of a search: what a cluster has, nodes that come and go, searches submitted to it from elsewhere."""

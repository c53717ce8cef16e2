"""Records -> a folder of web pages that opens from disk and requests nothing from the network."""

"""Records -> a folder of web pages that opens from the disk: nothing in it asks the network for anything."""

"""The optional coordinator. It never imports `node`, and no node needs it to train."""

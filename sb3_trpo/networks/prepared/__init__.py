"""Networks prepared to be run many times on batches of one size: buffers and views are made once."""

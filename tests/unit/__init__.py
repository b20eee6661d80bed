"""Pure code, without sockets and processes."""

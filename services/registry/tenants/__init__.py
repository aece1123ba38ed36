"""What callers may do: what can be said of a tenant (checks), where it is kept (store), and who asks for it (rpc)."""

"""The gateway: the one public door. It reads where a request wants to go and passes the bytes on."""

"""Frees what nobody needs: what names an artifact (references), what the cache of builds keeps (cache), one run of both
over every file (collector), and when (rounds)."""

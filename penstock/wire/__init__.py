"""The data plane's transport: how an inference call travels between client, gateway and worker.

Inference logic knows `Call` and `Answer` and nothing else of the wire; `server` and `client` carry them over gRPC.
This is the one seam at which the transport can be replaced.
"""

from penstock.wire.call import Answer, Call, Direct, Done, Handler, Pending

__all__ = ["Answer", "Call", "Direct", "Done", "Handler", "Pending"]

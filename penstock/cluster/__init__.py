"""What Penstock keeps in etcd and how a service takes part: records under keys, mirrors, membership, leadership.

`etcd` is the only file that speaks etcd's protocol; `keys` lists every key with its one writer; `watch.Mirror` is a
prefix as a dict; `membership.Membership` keeps a service's own records alive; `election.Election` gives one leader.
Nothing here is on the path of an inference request.
"""

from penstock.cluster.election import Election, Term, TermOver
from penstock.cluster.etcd import Etcd
from penstock.cluster.membership import Membership
from penstock.cluster.watch import Mirror

__all__ = ["Election", "Etcd", "Membership", "Mirror", "Term", "TermOver"]

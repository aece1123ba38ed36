"""The scheduler: decides which worker runs which version. Any number run; one leads, all show the cluster's status."""

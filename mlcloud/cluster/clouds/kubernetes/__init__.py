"""Kubernetes, through KubeRay's operator: a cluster is one `RayCluster` object, a node a pod.

    selling   what there is: pods of nodes, at their cloud's prices   placing  where a pod goes
    manifest  the RayCluster: head, one worker group a node           beside   what stands by it
    api       the official client, what its refusals mean             waiting  why a pod waits
    cloud     launch, list, terminate: the head's side                pods     a pod as an instance

The operator makes pods and Kubernetes finds nodes for them; which, and at what price, is decided
as on any other cloud: Ray's autoscaler at the head asks mlcloud for a shape, and that walks the
offers. So KubeRay's own autoscaler, which knows no prices (of two groups that fit it takes either),
is off. Nobody is told "no capacity": a pod waits, and says for what; after some minutes the next
offer is tried.

`mlcloud up` and `down` are in `client/podded`. What is sent is checked in the tests against the
CRD's schema and Kubernetes' models. Neither an operator nor a cluster was there to run it.
"""

from mlcloud.cluster.clouds.kubernetes.cloud import KubernetesCloud

__all__ = ["KubernetesCloud"]

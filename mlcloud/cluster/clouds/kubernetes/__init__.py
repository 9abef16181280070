"""Kubernetes, through KubeRay's operator: a cluster is one `RayCluster` object.

    manifest  the RayCluster: head, worker groups, autoscaling  placing  which nodes a pod goes to
    api       the official client, what its refusals mean       cloud    launch, list, terminate
    pods      a pod as an instance

Here Ray's own provider does run: with `enableInTreeAutoscaling` the operator puts Ray's autoscaler
(v2, `ray.autoscaler.v2…cloud_providers.kuberay`) beside the head, and that scales the worker
groups. `KubernetesCloud` speaks the same protocol (a group's `replicas`, and `workersToDelete` for
a certain pod), so that both can act on one cluster.

The operator starts Ray and Kubernetes finds the nodes: a bootstrap script is not run (what a node
needs is in its image), and nobody is told "no capacity"; a pod waits, and says for what. KubeRay's
autoscaler does not know prices either: of two groups that fit it takes either, so give it one group
for each shape, of the offer that `walk` puts first.

A manifest is checked in the tests against the CRD's schema and Kubernetes' models. Neither an
operator nor a cluster was there to run it.
"""

from mlcloud.cluster.clouds.kubernetes.cloud import KubernetesCloud

__all__ = ["KubernetesCloud"]

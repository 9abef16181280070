"""Azure virtual machines.

    body     the request that makes a machine     network    what lets machines reach each other
    answers  what Azure's refusals mean           api        one pipeline, operations, pages
    cloud    launch, list, terminate              leftovers  what a crash left, and its removal

Of Ray's own Azure provider (`ray.autoscaler._private._azure`, Ray 2.60) this takes what it shows of
the API and does not run it:

- it deploys a template for each launch and waits for the whole of it, one at a time under a lock;
  "no capacity" and "quota" come back as a deployment that failed;
- `terminate_node` stops machines by default and keeps disk, address and network card, which bill;
- each listing costs three calls for each machine, where three for all of them serve;
- its network lets SSH in from everywhere, its identity is Contributor of the resource group, its
  disks and cards carry no tags, and there is no first-boot script and no event before an end;
- it takes the subscription from the `az` CLI's own package, and three SDKs of 47 MB. azure-core and
  azure-identity, which come with adlfs anyway, sign in, retry and log; the rest is one JSON body.

An Azure machine that is shut down from inside bills on: the end of one is always a call of the API
(`terminate`), and `answers.roles` says what a node's identity needs to make it for itself.

What is sent is checked in the tests against the models of azure-mgmt-compute and -network. None of
it was run against Azure.
"""

from mlcloud.cluster.clouds.azure.cloud import AzureCloud

__all__ = ["AzureCloud"]

"""Google Compute Engine.

    body     the request that makes a machine     network    what lets machines reach each other
    answers  what Compute Engine's refusals mean  api        one authorized session, operations
    cloud    launch, list, terminate              leftovers  what a crash left, and its removal

Of Ray's own GCP provider (`ray.autoscaler._private.gcp`, Ray 2.60) this takes what it shows of the
API and does not run it:

- it is bound to one zone (`provider.availability_zone`); an offer names its own;
- a refused operation is a bare `Exception(result["error"])`, so "no capacity" and "quota" look
  alike; an operation that is not done after 12 polls of 5 s counts as done;
- it lists one page of one zone, and has no lifetime, no notice duration, no request id;
- its bootstrap makes a service account with `compute.admin` and `storage.objectAdmin` of the whole
  project for the head, with the scope `cloud-platform`, and a project-wide SSH key;
- googleapiclient weighs 111 MB (its discovery documents) and its transport is no good across
  threads, for which Ray opens a new one for each call. `google-auth`, which comes with gcsfs
  anyway, has an authorized `requests` session that retries and is 0 MB more.

What is sent is checked in the tests against Google's own discovery document. None of it was run
against Google's cloud.
"""

from mlcloud.cluster.clouds.gcp.cloud import GcpCloud

__all__ = ["GcpCloud"]

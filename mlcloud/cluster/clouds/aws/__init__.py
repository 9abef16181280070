"""AWS: EC2 instances, spot and on demand.

    cloud       AwsCloud: launch, list, terminate, plan, sweep
    body        an offer and a request as the body of RunInstances (pure)
    userdata    the bootstrap script as EC2 takes it          images   which AMI
    network     VPC, subnets by zone, the security group      identity roles, profiles, the SSH key
    through_ray Ray's own AWSNodeProvider, which launches and terminates
    machines    what EC2 lists, as `Instance`s                refusals what EC2 says no with
    quotas      how many vCPUs the account may have           policies what must be allowed to whom
    leftovers   what is still there, and how it goes          api      clients, regions, retries
    names       what everything is called

Ray's node provider launches and terminates here. Its *bootstrap* (`bootstrap_aws`) is not used, and
these are the reasons: its security group opens port 22 to 0.0.0.0/0; its role is one for all
clusters and holds AmazonEC2FullAccess and AmazonS3FullAccess in every region; its key is written to
`~/.ssh` and shared; it takes each zone's subnets from whichever VPC comes first, so that nodes of
two zones may not reach each other; its image is Ubuntu 18.04; it waits 30 s by the clock; nothing
that it makes carries our tags, so nothing could be found again; and it ends with
`click.ClickException`, without the cloud's error code. `network` and `identity` do the same work.
"""

from mlcloud.cluster.clouds.aws.cloud import AwsCloud

__all__ = ["AwsCloud"]

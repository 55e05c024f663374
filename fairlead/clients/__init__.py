"""One typed client a service, asynchronous with a synchronous face."""

from fairlead.clients.client import ClientOptions, options_of
from fairlead.clients.policy import AsyncPolicyClient, PolicyClient
from fairlead.clients.reference import AsyncReferenceClient, ReferenceClient
from fairlead.clients.reward import AsyncRewardClient, RewardClient

__all__ = [
    "AsyncPolicyClient",
    "AsyncReferenceClient",
    "AsyncRewardClient",
    "ClientOptions",
    "PolicyClient",
    "ReferenceClient",
    "RewardClient",
    "options_of",
]

"""A typed client for each service, asynchronous and blocking."""

from fairlead.clients.client import ClientOptions, options_of
from fairlead.clients.policy import AsyncPolicyClient, PolicyClient
from fairlead.clients.reference import AsyncReferenceClient, ReferenceClient
from fairlead.clients.reward import AsyncRewardClient, RewardClient
from fairlead.clients.reward_admin import AsyncRewardAdminClient, RewardAdminClient

__all__ = [
    "AsyncPolicyClient",
    "AsyncReferenceClient",
    "AsyncRewardAdminClient",
    "AsyncRewardClient",
    "ClientOptions",
    "PolicyClient",
    "ReferenceClient",
    "RewardAdminClient",
    "RewardClient",
    "options_of",
]

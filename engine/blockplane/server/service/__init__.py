"""The service: a process that owns volumes for long, answers for them, and does what a policy says when it is time."""

from blockplane.server.service.jobs import Job, Outcome, StoppedError, Work
from blockplane.server.service.log import Log
from blockplane.server.service.policy import Policy, VolumePolicy
from blockplane.server.service.policyfile import read_policy
from blockplane.server.service.reading import Mistake, PolicyError
from blockplane.server.service.service import Service
from blockplane.server.service.timetable import At, Every

__all__ = [
    "At",
    "Every",
    "Job",
    "Log",
    "Mistake",
    "Outcome",
    "Policy",
    "PolicyError",
    "Service",
    "StoppedError",
    "VolumePolicy",
    "Work",
    "read_policy",
]

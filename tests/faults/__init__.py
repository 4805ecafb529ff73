"""The recording, fault-injecting disk and the crash explorer that tests of several levels use."""

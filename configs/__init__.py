"""The YAML files that the verbs compose; installed as `seer.configs`."""

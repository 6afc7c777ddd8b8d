"""The word that `nipmesh init` writes where it cannot know how a program is started; every check points at it."""

RUN_PLACEHOLDER = "COMMAND-THAT-STARTS-IT"

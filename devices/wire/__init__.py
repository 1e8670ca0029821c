"""The wire protocols without any input or output: messages, sessions, windows. Time is passed in, in seconds."""

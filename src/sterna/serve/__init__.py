"""The HTTP server: OpenAI's API over one or more engines, and what a stranger may do with it."""

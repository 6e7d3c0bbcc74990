"""The HTTP server: OpenAI's API and a page, over the scheduler (`loragraft.inference.scheduler`)."""

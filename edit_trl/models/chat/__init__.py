"""Models that answer chat prompts: endpoints and local ones, with a journal, pacing and retries."""

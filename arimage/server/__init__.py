"""An HTTP server with the interface of OpenAI's images API. Start with: ``arimage serve``."""

"""An OpenAI-compatible HTTP endpoint on loopback: `messages` (the bodies), `http` (one connection), `server`."""

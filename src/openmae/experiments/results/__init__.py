"""What is measured, and how it is told: results.json, results.md and pictures."""

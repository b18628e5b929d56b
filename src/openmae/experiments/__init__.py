"""The paper's tables and figures, run at any scale."""

"""What each table or figure of the paper is: its rows, and the paper's figures."""

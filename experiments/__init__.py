"""Studies: one module each, `run`, claims and figures. No study imports another."""

"""The paper's Table I and figures, and chips fitted to them."""

"""What was kept and what was lost: zero-shot, retrieval, shift, agreement, retention, cost, report."""

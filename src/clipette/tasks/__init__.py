"""Where teacher meets student: pour, pretrain and distil."""

"""Screen F5: a distillation run started, watched, paused and stopped; or one of elsewhere."""

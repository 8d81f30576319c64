"""What every broker and every store must do, as tests that anybody can run on theirs."""

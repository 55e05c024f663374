#!lua flags=allow-oom
-- Fences off every lower incarnation. ARGV: owner, `<incarnation>:<token>`. Trying again is harmless.
check_types()
check_fence()
ensure_group()
return 1

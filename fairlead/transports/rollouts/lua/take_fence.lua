#!lua flags=allow-oom
-- Take the fence, which blocks every lower incarnation. ARGV: owner, `<incarnation>:<token>`. Safe to repeat.
check_types()
check_fence()
ensure_group()
return 1

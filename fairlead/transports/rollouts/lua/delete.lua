#!lua flags=allow-oom
-- Deletes outcomes. ARGV: owner, then entries. Returns how many there were.
for i = 2, #ARGV do
  entry_id(i)
end
check_types()
check_fence()
local deleted = 0
for i = 2, #ARGV do
  deleted = deleted + redis.call('XDEL', ROLLOUTS, ARGV[i])
end
return deleted

#!lua flags=allow-oom
-- Delete outcomes. ARGV: owner, then entries. Returns the number of entries that existed.
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

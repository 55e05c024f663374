#!lua flags=allow-oom
-- Give entries back as if they had not been delivered. ARGV: consumer, then entries.
-- Entries that this worker no longer holds are not changed.
local consumer = payload(1, 'consumer')
for i = 2, #ARGV do
  entry_id(i)
end
check_types()
ensure_group()
local given = 0
for i = 2, #ARGV do
  local pending = pending_of(ARGV[i])
  if pending and pending.consumer == consumer then
    give_back(ARGV[i], math.max(0, pending.deliveries - 1))
    given = given + 1
  end
end
return given

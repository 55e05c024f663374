#!lua flags=allow-oom
-- Renew leases. ARGV: consumer, then (entry, task, incarnation, number) of each claim.
-- Returns the lost entries: held by another worker, closed, or deleted from the stream.
local consumer = payload(1, 'consumer')
for i = 2, #ARGV, 4 do
  entry_id(i)
  digits(i + 1, 'task')
  digits(i + 2, 'incarnation')
  digits(i + 3, 'number')
end
check_types()
ensure_group()
local lost, closed = {}, false
for i = 2, #ARGV, 4 do
  local entry = ARGV[i]
  local pending = pending_of(entry)
  if not open_failures(ARGV[i + 1], ARGV[i + 2], ARGV[i + 3], entry) then
    acknowledge(entry)
    closed = true
    lost[#lost + 1] = entry
  elseif not pending or pending.consumer ~= consumer
    or #redis.call('XCLAIM', PROMPTS, GROUP, consumer, 0, entry, 'JUSTID') == 0 then
    lost[#lost + 1] = entry
  end
end
if closed then
  trim()
end
return lost

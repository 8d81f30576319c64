-- Finds what stock workers have held for too long. What is ours has a lease.
--
-- ARGV  4 seconds
-- Returns {tag, entry of `unacked`, ...}.

local found = {}
local tags = call('ZRANGEBYSCORE', INDEX, '-inf', time() - tonumber(ARGV[4]), 'LIMIT', 0, BATCH)
for _, tag in ipairs(tags) do
  if not call('ZSCORE', LEASES, tag) then
    local held = call('HGET', UNACKED, tag)
    if held then
      table.insert(found, tag)
      table.insert(found, held)
    else
      call('ZREM', INDEX, tag) -- of a message that was put back when its worker shut down
    end
  end
end
return found

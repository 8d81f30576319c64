-- Ends deliveries whose messages are done.
--
-- ARGV  4... tags, each once
-- Returns the tags that were void.

local void = {}
for first = 4, #ARGV, 1000 do
  local last = math.min(first + 999, #ARGV)
  -- Whatever is in the index is in the hash, so one count tells that all is well; else the hash tells what is not.
  if call('ZREM', INDEX, unpack(ARGV, first, last)) ~= last - first + 1 then
    for i = first, last do
      if call('HEXISTS', UNACKED, ARGV[i]) == 0 then
        table.insert(void, ARGV[i])
      end
    end
  end
  call('HDEL', UNACKED, unpack(ARGV, first, last))
  call('ZREM', LEASES, unpack(ARGV, first, last))
end
return void

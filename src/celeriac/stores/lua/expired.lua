-- When a record whose task ended before a time has expired, having been kept for so many seconds ('': for ever).
local function expired_at(row, kept, before)
  local finished = tonumber(row[FINISHED])
  if kept ~= '' and finished and finished < tonumber(before) then
    return string.format('%.0f', finished + tonumber(kept) * 1000000)
  end
  return nil
end
